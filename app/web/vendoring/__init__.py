"""Third-party front-end code: from npm into git-ignored folders, every file checked. Standard library only."""
