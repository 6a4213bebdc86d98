"""Published methods, one file each, found by its name; every file declares its `METHODS`."""

REQUIRED = ("METHODS",)
