"""Arguments, seeds, versions, warnings, progress and files: helpers that every floor above may use."""
