"""A second name for a file, so that its bytes are on the disk once."""

import errno
import os
import shutil
from pathlib import Path

# Another file system, one without links, too many of them, or a file that this user may only read.
CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; where the file system cannot, copy it. Raises OSError."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in CANNOT_LINK:
            raise
        shutil.copyfile(source, target)
