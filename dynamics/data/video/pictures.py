"""Two pictures to the two frames of a labelled pair.

Runs in the limited process of `dynamics.data.video.worker`: codecs parse hostile bytes in C.
"""

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from dynamics.core.images import read_picture
from dynamics.data.video.decode import Bars, Ends, square


def read_pictures(source: bytes, target: bytes, frame_px: int, bars: Bars = None) -> Ends:
    """Two encoded pictures as frames, squared as ``bars`` says.

    Scaled like frames of a video, so that a pool of videos and a labelled set of pictures look
    alike.

    Raises:
        PictureError: as `read_picture`.
    """
    frames = []
    for payload in (source, target):
        picture = read_picture(payload, drop_alpha=bars is not None)
        frame = av.VideoFrame.from_ndarray(np.array(picture), format="rgb24")
        frames.append(square(VideoReformatter(), frame, frame_px, bars))
    return Ends(frames=np.stack(frames))
