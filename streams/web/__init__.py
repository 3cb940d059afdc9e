"""Pages that every worker serves on Faust's own web server."""
