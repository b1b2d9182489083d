"""What a native mount needs of a layer besides its data: an EROFS image of its metadata and an index of its contents, built once from the TOC."""

from snapshotter.metadata.contentid import ContentId, Scope, content_path
from snapshotter.metadata.index import ContentIndex

__all__ = ["ContentId", "ContentIndex", "Scope", "content_path"]
