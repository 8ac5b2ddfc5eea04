"""What happens when a plug-in's own library is missing."""

raise ImportError("libbroken.so: cannot open shared object file")
