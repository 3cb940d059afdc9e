"""The transport driver: all that leans on Faust's insides."""
