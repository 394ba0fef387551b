"""Words that belong to the published weights as their statistics do: every published clip was made with them.

They are those of the published example script and its files (kairos-agi/kairos-sensenova, Apache License 2.0).
"""

from __future__ import annotations

PROMPT_PREFIX = "high-quality video, realistic motion, single continuous shot, no jump cuts, smooth motion. "
"""Put before a prompt that comes with an image."""

NEGATIVE_PROMPT = (
    "bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, "
    "overall gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, "
    "poorly drawn hands, poorly drawn faces, deformed, disfigured, deformed limbs, fused fingers, still picture, "
    "messy background, three legs, many people in the background, walking backwards, contorted human joints, "
    "objects floating against natural forces, abrupt shot changes"
)
"""What guidance leads away from."""
