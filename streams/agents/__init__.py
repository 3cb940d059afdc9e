"""One file per biz_type; every module here and in the packages of `agents` is imported at start."""
