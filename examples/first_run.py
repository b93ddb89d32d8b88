"""A first run: a taste in five lines, DDPO on the built-in model, and a look at what came out.

python examples/first_run.py [FOLDER]
"""

import sys

import tastemaker as tm


def bright(images, prompts):  # type: ignore[no-untyped-def]
    """A reward of our own: how light the pictures `[B,3,H,W]` are, one number each."""
    return images.mean((1, 2, 3))


def main(folder: str = "runs/first_run", iterations: int = 12, prompts: int = 16, images: int = 32) -> tm.Run:
    """Trains, and writes a few pictures of the tuned model beside the run."""
    run = tm.train(
        model="shapes",
        reward=bright,
        prompts=tm.prompts.shapes(),
        algorithm=tm.DDPO(images=images, iterations=iterations),
        evaluation={"count": prompts},  # held-out prompts, four pictures each, before and after
        output_dir=folder,
        on_samples=lambda batches, step, trackers: print(
            f"  best of {step + 1}: {max(r.max() for _, _, _, r, _ in batches):.3f}"
        ),
    )
    print(f"{len(run.metrics())} iterations, the last mean was {run.metrics()[-1]['reward']['mean']:.3f}")
    found = run.evaluate(evaluation={"images_per_prompt": 1})["bright"]
    print(f"on {prompts} held-out prompts: {found.change:+.3f} [{found.change_low:+.3f}, {found.change_high:+.3f}]")
    pipeline = run.pipeline()
    drawn = pipeline(["a red circle", "two blue stars"], num_inference_steps=20, guidance_scale=3)
    for k, image in enumerate(drawn.images):
        image.save(f"{folder}/tuned-{k}.png")
    return run


if __name__ == "__main__":
    main(*sys.argv[1:2])
