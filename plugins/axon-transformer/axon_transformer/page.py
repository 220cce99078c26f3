"""The translator's page in the browser, which `axon serve RUN` shows: translations, and what they look at."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from axon_core import AxonError, UsageError, validate
from axon_llamachat import Page, picture
from axon_transformer.heatmap import attention_of, heatmap_png
from axon_transformer.search import Search
from axon_transformer.translate import Translation, Translator

if TYPE_CHECKING:
    import gradio

__all__ = ["TranslatorPage"]

_LINES = 64  # sentences at once


class TranslatorPage(Page):
    """Translates sentences, one a line; of a single one it shows the candidates and a picture of the attention.

    Args:
        translator: what translates.
        name: what it is called.
    """

    def __init__(self, translator: Translator, name: str) -> None:
        self.translator, self.name = translator, name

    @classmethod
    def load(cls, folder: Path, *, name: str, device: str) -> Self:
        """Return the page of a saved Transformer. Raises `CheckpointError` if it is damaged or another model."""
        return cls(Translator.load(folder, device=device), name)

    def blocks(self) -> gradio.Blocks:
        """Return the page."""
        import gradio

        with gradio.Blocks(title=f"{self.name} · translator") as made:
            with gradio.Row():
                source = gradio.Textbox(label="Sentences, one a line", lines=5, max_lines=20, autofocus=True)
                target = gradio.Textbox(
                    label="Translations", lines=5, max_lines=20, interactive=False, buttons=["copy"]
                )
            with gradio.Row():
                run = gradio.Button("Translate", variant="primary")
                stop = gradio.Button("Stop")
            with gradio.Accordion("Search", open=False):
                beam = gradio.Slider(1, 16, Search().beam, step=1, label="Beam", info="Candidates; 1 is greedy.")
                alpha = gradio.Slider(0, 2, Search().length_penalty, step=0.1, label="Length penalty")
            found = gradio.Textbox(
                label="Candidates of one sentence, with their scores", interactive=False, visible=False
            )
            seen = gradio.HTML(label="What each layer and head looks at")
            asked, shown = [source, beam, alpha], [target, found, seen]
            translating = gradio.on([run.click, source.submit], self.translate, asked, shown, api_visibility="private")
            stop.click(None, cancels=[translating])
        return made

    def translate(self, text: str, beam: int, length_penalty: float) -> tuple[str, Any, str]:
        """Return the translations, the candidates and the picture of the attention, both only of a single sentence.

        Raises:
            gradio.Error: a sentence cannot be translated, or there are too many.
        """
        import gradio

        lines = text.splitlines()
        try:
            if len(lines) > _LINES:
                raise UsageError(f"the page translates at most {_LINES} lines at once, got {len(lines)}")
            values = {"beam": int(beam), "length_penalty": length_penalty, "n_best": int(beam)}
            results = self.translator.translate(lines, validate(Search, values), place="line {}".format)
        except AxonError as error:
            raise gradio.Error(html.escape(str(error)), print_exception=False) from None
        target = "\n".join(best.text for best, *_ in results)
        if len(lines) != 1 or not lines[0].strip():
            return target, gradio.Textbox(visible=False), ""
        candidates = "\n".join(f"{each.score:7.3f}  {each.text}" for each in results[0])
        shown = gradio.Textbox(candidates, visible=len(results[0]) > 1, lines=len(results[0]))
        return target, shown, self._attention(lines[0], results[0][0])

    def _attention(self, text: str, translation: Translation) -> str:
        """Return the picture of a translation's cross-attention as HTML, or why there is none."""
        try:
            data = heatmap_png(*attention_of(self.translator, text, translation))
        except UsageError as error:
            return f"<p>{html.escape(str(error))}</p>"
        return picture(data, f"what each head looks at for each token of: {translation.text}")
