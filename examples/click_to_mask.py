"""Turn a click, or a detector's box, into a mask.

Writes two overlay pictures into the current folder.
"""

from importlib.resources import files

from sharpmask import ProposalGenerator, load_model

POINTS = [(280, 110), (365, 285)]  # x, y in pixels: the cup, the spoon
BOXES = [(165, 15, 240, 205), (320, 235, 85, 95)]  # x, y, width, height: the same two


def main() -> None:
    photo = str(files("sharpmask") / "assets" / "coffee.jpg")
    generator = ProposalGenerator(load_model())

    clicked = generator.at_points(photo, POINTS)
    for (x, y), mask in zip(POINTS, clicked.masks(), strict=True):
        print(f"click at {x}, {y}: {mask.sum()} pixels, contains the click: {mask[y, x]}")
    clicked.save_overlay("clicks.png")

    boxed = generator.in_boxes(photo, BOXES)
    for box, tight in zip(BOXES, boxed.boxes, strict=True):
        print(f"box {box}: the mask's own box is {tight.round().astype(int).tolist()}")
    boxed.save_overlay("boxes.png")
    print("clicks.png, boxes.png: the masks over the photo")


if __name__ == "__main__":
    main()
