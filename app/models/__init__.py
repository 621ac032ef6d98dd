"""Models: manifests of single files from uploads or from a hub, scanned and never executed."""
