"""What OpenAI's clients may send to `/v1/responses`: one user input, and the image tool. Nothing else of that interface is here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from services.api.answers import Warning
from services.api.fields import QueryInt, Sent
from services.api.openai.schemas import Asked, Picture
from services.api.schemas import MAX_PROMPT_CHARS

UNSUPPORTED = {
    "instructions": "say it in the input; there is no language model between it and the picture",
    "previous_response_id": "each response stands alone; send earlier pictures as input_image",
    "conversation": "each response stands alone; send earlier pictures as input_image",
    "prompt": "send the text as input",
    "text": "the answer is a picture",
    "reasoning": "there is no language model that could reason",
    "max_output_tokens": "the number of tokens follows from the size",
    "max_tool_calls": "the image tool is called once",
    "temperature": "of a language model there is none; of the layout stage it belongs into the image tool",
    "top_p": "of a language model there is none; of the layout stage it belongs into the image tool",
    "include": "everything is included",
}
"""Members of OpenAI's requests that would change what comes out, and why they cannot."""


class TextPart(Sent):
    """Text of the prompt."""

    type: Literal["input_text"]
    text: str = Field(max_length=MAX_PROMPT_CHARS)


class ImagePart(Sent):
    """A reference image: by an http, https or data URL, or as a file of yours."""

    type: Literal["input_image"]
    image_url: str | None = Field(default=None, min_length=1)
    file_id: str | None = Field(default=None, max_length=64)
    detail: str | None = Field(default=None, max_length=16, description="Accepted for OpenAI's clients; has no effect.")


class UserMessage(Sent):
    """What the user says."""

    type: Literal["message"] = "message"
    role: Literal["user"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]


class ImageTool(Picture):
    """The only tool there is."""

    type: Literal["image_generation"]
    action: Literal["auto", "generate", "edit"] = Field(default="auto", description="`edit` needs reference images, `generate` takes none.")
    model: str | None = Field(default=None, max_length=128)
    background: Literal["opaque", "auto"] = "auto"


class ChosenTool(Sent):
    """The image tool, by name."""

    type: Literal["image_generation"]


class BackgroundOptions(Sent):
    """How long a response in the background may take."""

    completion_window: Literal["soonest", "2h", "8h"] = "soonest"


class ResponseRequest(Asked):
    """A picture, asked for as a response."""

    input: str | list[UserMessage] = Field(description="The prompt; or one user message of texts and reference images.")
    tools: list[ImageTool] = Field(min_length=1, max_length=1, description="The image tool, with what the picture should be.")
    tool_choice: Literal["auto", "required"] | ChosenTool = "auto"
    background: bool = Field(default=False, description="Answer at once; ask for the response by its id.")
    background_options: BackgroundOptions = BackgroundOptions()
    stream: bool = Field(default=False, description="Answer with server-sent events.")
    store: Literal[True] = Field(default=True, description="Responses are always kept.")
    parallel_tool_calls: bool = Field(default=True, description="Accepted for OpenAI's clients; has no effect.")
    truncation: Literal["auto", "disabled"] = Field(default="disabled", description="Accepted for OpenAI's clients; has no effect.")


class ResponseQuery(Sent):
    """How to read a response."""

    stream: Literal["true", "false"] = Field(default="false", description="Show it on its way, as events.")
    starting_after: QueryInt | None = Field(default=None, ge=0, description="Number of the last event that was seen.")


class ResponseAnswer(BaseModel):
    """A response, with a picture in it once it is completed."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled", "incomplete"]
    background: bool
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    instructions: None
    metadata: dict[str, str]
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: None
    service_tier: str
    store: bool
    tool_choice: str | dict[str, str]
    tools: list[dict[str, Any]]
    usage: dict[str, Any] | None
    tool_usage: dict[str, Any] | None
    glyph_texts: list[str] = Field(description="What is drawn letter by letter.")
    warnings: list[Warning] = Field(description="What may not be as the writer of the prompt thinks.")


class ResponseDeletedAnswer(BaseModel):
    """The response is gone."""

    id: str
    object: Literal["response"]
    deleted: bool
