"""A bot's life through all six containers: from an uploaded dialog to an answer that is kept."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import hvac
    import openai
    import psycopg
    import valkey

    from pytest_stagegbo.stage import Stage

DIALOG = b'REM greets\nTALK "What is your name?"\nHEAR name\nTALK "Hello " + name\n'


@pytest.mark.stage_reset("all")  # the three that hold no data worth keeping: cache, drive, system
def test_a_dialog_from_upload_to_answer(
    bot: str,
    eventually: Callable[[Callable[[], Any]], Any],
    stage_gbo: Stage,
    stage_hvac: hvac.Client,
    stage_s3: Any,
    stage_psycopg: psycopg.Connection[tuple[Any, ...]],
    stage_openai: openai.OpenAI,
    stage_valkey: valkey.Valkey,
) -> None:
    # vault: BotServer's token opens the secret that tells it where drive is.
    secret = stage_hvac.secrets.kv.v2.read_secret_version("gbo/drive", raise_on_deleted_version=True)
    assert int(secret["data"]["data"]["port"]) == stage_gbo.drive.port

    # drive: somebody uploads a dialog and the bot's configuration.
    stage_s3.create_bucket(Bucket=f"{bot}.gbai")
    stage_s3.put_object(Bucket=f"{bot}.gbai", Key=f"{bot}.gbot/config.csv", Body=b"name,value\nbot-title,Greeter\n")
    stage_s3.put_object(Bucket=f"{bot}.gbai", Key=f"{bot}.gbdialog/start.bas", Body=DIALOG)

    # system: BotServer polls drive, finds the dialog and compiles it in its work folder. Commands run in there as root.
    def compiled() -> str | None:
        path = f"/opt/gbo/work/{bot}.gbai/{bot}.gbdialog/start.ast"
        return stage_gbo.system.exec("cat", path, check=False).stdout or None

    statements = json.loads(eventually(compiled))["statements"]
    assert [statement["keyword"] for statement in statements] == ["TALK", "HEAR", "TALK"]
    assert f"compiled {bot}.gbai" in stage_gbo.system.logs()

    # tables: BotServer has put the configuration into its database.
    def title() -> tuple[Any, ...] | None:
        query = "SELECT config_value FROM bot_configuration WHERE bot = %s AND config_key = 'bot-title'"
        return stage_psycopg.execute(query, [bot]).fetchone()

    assert eventually(title) == ("Greeter",)

    # llm: the model says something.
    messages: Any = [{"role": "user", "content": "Greet Ada in five words."}]
    model = stage_openai.models.list().data[0].id
    answer = stage_openai.chat.completions.create(model=model, messages=messages, max_tokens=8, temperature=0)
    text = answer.choices[0].message.content
    assert text

    # tables and cache: the conversation is kept, and the session that it belongs to. Others see both at once.
    insert = "INSERT INTO message_history (user_id, content) VALUES (1, %s) RETURNING id"
    row = stage_psycopg.execute(insert, [f"{bot}: {text}"]).fetchone()
    assert row is not None
    stage_psycopg.commit()
    stage_valkey.hset(f"session:{bot}", mapping={"user": 1, "last_message": row[0]})
    session: Any = stage_valkey.hgetall(f"session:{bot}")
    assert session == {b"user": b"1", b"last_message": str(row[0]).encode()}
    kept = stage_psycopg.execute("SELECT content FROM message_history WHERE id = %s", [row[0]]).fetchone()
    assert kept == (f"{bot}: {text}",)

    # The stage began clean: this session is the only one.
    assert list(stage_valkey.scan_iter("session:*")) == [f"session:{bot}".encode()]
