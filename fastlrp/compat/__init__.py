"""Drop-in replacements for other libraries: change the import, keep the script."""
