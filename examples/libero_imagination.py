"""What a model imagines of a LIBERO demonstration that it has not seen, above what happened.

    python examples/libero_imagination.py runs/libero/model runs/libero-heldout

The first frame is real, everything after it follows from the recorded actions alone. Writes film strips and prints the
peak signal-to-noise ratio at some horizons, beside that of a picture that stays as the first frame was.
"""

import argparse
from pathlib import Path

from kairos_env import WorldModel
from kairos_env.datasets.libero import LiberoFile
from kairos_env.train import write_strip
from kairos_env.world_model.training.trainer import validate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a trained model")
    parser.add_argument("recording", help="file or folder of `kairos record-libero`, of starts that were not trained on")
    parser.add_argument("--episodes", type=int, default=20, help="how many, spread over the recording")
    parser.add_argument("--out", default="runs/libero-imagination", help="folder of the film strips")
    arguments = parser.parse_args()

    model = WorldModel.from_pretrained(arguments.model)
    recording = LiberoFile(arguments.recording)
    recording.spec.require_same(model.spec, "recording", "model")
    numbers = range(0, len(recording), max(1, len(recording) // arguments.episodes))
    episodes = [recording[i] for i in numbers][: arguments.episodes]
    metrics = validate(model, episodes, Path(arguments.out), write_strip)
    print(f"{len(episodes)} episodes of {min(map(len, episodes))} decisions and more")
    for horizon in (1, 5, 10, 20):
        if f"psnr_{horizon}" in metrics:
            print(
                f"decision {horizon:2d}: {metrics[f'psnr_{horizon}']:.1f} dB, first frame unchanged "
                f"{metrics[f'psnr_{horizon}_copy']:.1f} dB"
            )
    print(f"film strips: {arguments.out}")


if __name__ == "__main__":
    main()
