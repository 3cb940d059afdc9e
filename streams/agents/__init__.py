"""One file per biz_type; every module here, and in the packages `faust.yml` names, is imported at start."""
