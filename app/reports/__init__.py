"""Reports of ended jobs: JSON, Markdown, HTML, JUnit XML."""
