"""The documentation site, which MkDocs builds by mkdocs.yml: its pages, its pictures, and a check of what was built."""
