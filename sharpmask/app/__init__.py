"""The page that ``sharpmask app`` opens: masks for a photo, by proposals, clicks and boxes."""
