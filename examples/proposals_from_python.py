"""Find objects on a photo with the model that comes with the package.

Prints the best proposals and writes an overlay picture into the current folder.
"""

from importlib.resources import files

from sharpmask import ProposalGenerator, load_model


def main() -> None:
    photo = str(files("sharpmask") / "assets" / "coffee.jpg")
    generator = ProposalGenerator(load_model(), top_n=50)
    found = generator.generate(photo)  # also takes a PIL image or a uint8 (h, w, 3) array

    masks = found.masks()  # bool (N, h, w)
    print(f"{len(found)} proposals, masks {masks.shape}, boxes {found.boxes.shape}")
    for score, (x, y, width, height), mask in list(zip(found.scores, found.boxes, masks, strict=True))[:5]:
        print(f"score {score:.2f}  x {x:.0f}  y {y:.0f}  {width:.0f} x {height:.0f}  {mask.sum()} pixels")

    found.save_overlay("proposals_from_python.png", limit=8)
    print("proposals_from_python.png: the best eight masks over the photo")


if __name__ == "__main__":
    main()
