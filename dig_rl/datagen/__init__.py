"""Making image pairs: a scene is described and edited here, rendered in another process, and labelled from ids."""
