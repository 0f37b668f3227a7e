"""One thing that happened, told twice: to the tenant who asked, and to whoever runs the service."""

from __future__ import annotations

from dataclasses import dataclass

from agentao_gov.errors import GovError

__all__ = ["Reason"]


@dataclass(frozen=True, slots=True)
class Reason:
    """A sentence in two tellings. One that is given once is fit for both: `Reason("The turn was cancelled.")`."""

    #: Safe for a tenant: nothing of the operator's addresses, files and providers, and nothing that those said.
    public: str
    #: What the operator needs to mend it; empty where that is the public sentence.
    private: str = ""

    @classmethod
    def of(cls, error: GovError) -> Reason:
        """An error of ours."""
        return cls(error.public_message, str(error))

    @property
    def operator(self) -> str:
        """The telling with all that is known."""
        return self.private or self.public

    def after(self, words: str) -> Reason:
        """The same behind a few words, in both tellings."""
        return Reason(words + self.public, words + self.operator)
