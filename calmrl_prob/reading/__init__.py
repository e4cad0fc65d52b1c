"""Own data read: files, folders, stores and frames of many formats as sources of rows, joined by their ids."""
