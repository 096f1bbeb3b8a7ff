"""What each judge and model has cost, in the reply cache's database: money in whole nano-dollars.

What is set aside and taken back leaves no rounding behind there. The functions work within a transaction of the
cache's.
"""

import math
import sqlite3

NANO = 1_000_000_000


def nano(usd: float) -> int:
    """US dollars as nano-dollars, rounded up."""
    return math.ceil(usd * NANO)


def spent(db: sqlite3.Connection, account: str) -> int:
    """What `account` has cost, and what is set aside for requests on their way, in nano-dollars."""
    row = db.execute("SELECT nano_usd FROM spending WHERE judge = ?", (account,)).fetchone()
    return 0 if row is None else row[0]


def spend(db: sqlite3.Connection, account: str, nano_usd: int) -> None:
    """Add to what `account` has cost; less than 0 takes back what was set aside."""
    if nano_usd == 0:
        return
    db.execute(
        "INSERT INTO spending VALUES (?,?) ON CONFLICT (judge) DO UPDATE SET nano_usd = nano_usd + excluded.nano_usd",
        (account, nano_usd),
    )


def set_aside(db: sqlite3.Connection, account: str, most_usd: float, cap_usd: float | None) -> bool:
    """Set aside what a request may cost at most; False, and nothing is, where that passes the cap.

    The cap is on what the account has cost and what is set aside, by any process; what a killed process had set aside
    stays so, since its requests may be charged.
    """
    most = nano(most_usd)
    if cap_usd is not None and spent(db, account) + most > math.floor(cap_usd * NANO):
        return False
    spend(db, account, most)
    return True
