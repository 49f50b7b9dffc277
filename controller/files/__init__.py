"""Large files on the controller's disk: uploads, versions, free space, deletion."""
