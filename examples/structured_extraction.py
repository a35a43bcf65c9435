"""Structured extraction: a text goes in, an instance of a pydantic class comes out.

Set CHUCKY_URL and CHUCKY_TOKEN, then: python examples/structured_extraction.py [invoice.txt]
"""

import asyncio
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from chucky import Chucky, ChuckyError

SAMPLE = """Invoice
number: 2026-0117
supplier: "Lovelace Instruments"
issued_on: 2026-03-14
currency: EUR
total: 1290.50

Please pay within 30 days.
"""


class Invoice(BaseModel):
    """What is taken from the text. The descriptions are for the model."""

    number: str = Field(description="The invoice number, as it is printed")
    supplier: str = Field(description="Who wants to be paid")
    issued_on: date
    currency: Literal["EUR", "USD", "GBP"]
    total: Decimal = Field(description="What is to be paid, taxes included", ge=0)


async def extract(text: str) -> Invoice:
    """Ask for the invoice in a text; the server has checked what comes back."""
    async with Chucky() as client:
        result = await client.prompt(f"Extract this invoice:\n\n{text}", output_format=Invoice)
    if result.is_error:
        raise ValueError(f"This could not be read as an invoice: {result.result}")
    invoice: Invoice = result.structured_output
    return invoice


def main() -> None:
    try:
        text = Path(sys.argv[1]).read_text(encoding="utf-8") if len(sys.argv) > 1 else SAMPLE
        invoice = asyncio.run(extract(text))
    except (ChuckyError, OSError, ValueError) as error:
        sys.exit(f"Error: {error}")
    print(f"Pay {invoice.total:.2f} {invoice.currency} to {invoice.supplier}")
    print(f"for invoice {invoice.number} of {invoice.issued_on:%d %B %Y}.")


if __name__ == "__main__":
    main()
