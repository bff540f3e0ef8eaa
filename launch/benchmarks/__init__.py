"""One file a subject, one function a figure of `make bench`."""
