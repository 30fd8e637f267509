"""What extractors, heads, spaces and composed models have in common: facts, source, and the way to the Hub."""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timm_compat.errors import ConfigError
from timm_compat.storage.facts import Facts
from timm_compat.storage.source import Source

# Set by hub/push.py when the package is imported: components are below the Hub's push side and do not know it.
_push: Callable[..., Source] | None = None


class Component:
    """Base of what is saved, loaded and shared.

    Attributes:
        facts: licence, origin, training and results, for its card; set it before saving or pushing.
        source: where it was loaded from, or pushed to; None for a new one.
    """

    facts: Facts = Facts()
    source: Source | None = None
    _source_digest: str | None = None

    def remember(self, source: Source) -> None:
        """Note where the weights, as they are now, can be found."""
        self.source, self._source_digest = source, self.digest()

    def known_source(self) -> Source | None:
        """The source, as long as the weights are still those that lie there."""
        return self.source if self.source is not None and self._source_digest == self.digest() else None

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 over all weights and statistics."""

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the component to a new folder."""

    @abstractmethod
    def card(self, repo_id: str | None = None, *, picture: bool = False, subfolder: str = "") -> str:
        """The text of its card, for that place; ``picture`` where one of the matrix lies beside it."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        subfolder: str = "",
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        token: str | bool | None = None,
        commit_message: str | None = None,
        overwrite_card: bool = False,
        force: bool = False,
        **settings: Any,
    ) -> Source:
        """Publish the component: one commit for everything; files that are there already are not sent again.

        A card that a person edited keeps what they wrote: only the sections marked as ours are refreshed. To say a
        licence, results or a matrix, set ``facts`` before.

        Args:
            repo_id: "owner/name"; made where it does not exist.
            subfolder: of the repository, for several components in one; nothing outside it is touched, so neither is
                the repository's own card, whose tags decide what searches find.
            private: whether a new repository is private; the owner's default if None.
            revision: branch to commit to; made where it does not exist, "main" if None.
            create_pr: open a pull request instead.
            token: None for the one that is logged in.
            commit_message: its first line.
            overwrite_card: write the card anew, whatever it holds.
            force: replace what is there even if it is no component of this role: somebody else's files of the same
                names are lost.
            **settings: for ``save_pretrained``.

        Returns:
            Repository, commit and hashes; also in ``source``.

        Raises:
            ConfigError: the id or the subfolder is none, or the place holds a component of another role, or something
                else.
            DraftSpaceError: the space is a draft.
            HubError: the Hub refuses or fails. Where the answer to an upload got lost, the Hub is asked what is there,
                and the message says what it holds.
        """
        if _push is None:
            raise ConfigError("push_to_hub: import timm_compat first")
        source = _push(
            self,
            repo_id,
            subfolder=subfolder,
            private=private,
            revision=revision,
            create_pr=create_pr,
            token=token,
            commit_message=commit_message,
            overwrite_card=overwrite_card,
            force=force,
            settings=settings,
        )
        self.remember(source)
        return source


def set_pusher(push: Callable[..., Source]) -> None:
    """Say who publishes components."""
    global _push
    _push = push
