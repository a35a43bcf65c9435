"""A chat in the terminal: the answer appears as it is written, Ctrl-C stops it, Ctrl-D ends.

A line that ends with a backslash goes on in the next one.

Set CHUCKY_URL and CHUCKY_TOKEN, then: python examples/terminal_chat.py
"""

import asyncio
import signal
import sys
from collections.abc import Callable

from chucky import Chucky, ChuckyError, Session


async def main() -> None:
    async with Chucky(include_partial_messages=True) as client, client.create_session() as session:
        print("Ctrl-C stops an answer, Ctrl-D ends the chat.")
        while True:
            on_ctrl_c(say_how_to_end)
            try:
                text = await asyncio.to_thread(read_message)  # the connection lives on meanwhile
            except EOFError:
                break
            if text.strip():
                await answer(session, text)
    print()


def read_message() -> str:
    text = input("> ")
    while text.endswith("\\"):
        text = f"{text[:-1]}\n{input('. ')}"
    return text


def say_how_to_end() -> None:
    print("\n(Ctrl-D ends the chat.)\n> ", end="", flush=True)


def on_ctrl_c(action: Callable[[], object]) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, action)


async def answer(session: Session, text: str) -> None:
    """Send one message and print the answer to it; Ctrl-C stops only this turn."""
    ctrl_c = asyncio.Event()
    on_ctrl_c(ctrl_c.set)
    await session.send(text)
    stopping = asyncio.create_task(interrupt_after(ctrl_c, session))
    try:
        await show_turn(session)
    finally:
        stopping.cancel()


async def interrupt_after(ctrl_c: asyncio.Event, session: Session) -> None:
    await ctrl_c.wait()
    try:
        await session.interrupt()  # the stream then ends with a result that says so
    except ChuckyError as error:
        print(f"\n[{error}]")


async def show_turn(session: Session) -> None:
    async for message in session.stream():
        if message.type == "stream_event":
            print(printable(str(message)), end="", flush=True)
        elif message.type == "assistant":
            print()  # its text was printed piece by piece
        elif message.type == "result":
            if message.is_error:
                print(f"\n[{message.result}]")
            print(f"[${message.get('total_cost_usd') or 0:.4f} so far]")


def printable(text: str) -> str:
    """Leave out what would steer the terminal: a model may repeat what it has read somewhere."""
    return "".join(each for each in text if each.isprintable() or each in "\n\t")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except ChuckyError as error:
        sys.exit(f"Error: {error}")
