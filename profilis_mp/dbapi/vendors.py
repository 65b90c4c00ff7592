"""Which database does a PEP 249 driver speak to?"""

from __future__ import annotations

from typing import Any

__all__ = ["vendor_of"]

_VENDORS = {
    "sqlite3": "sqlite",
    "pysqlite3": "sqlite",
    "sqlcipher3": "sqlite",
    "psycopg": "postgresql",
    "psycopg2": "postgresql",
    "pg8000": "postgresql",
    "pymysql": "mysql",
    "MySQLdb": "mysql",
    "mysql": "mysql",
    "mariadb": "mariadb",
    "oracledb": "oracle",
    "cx_Oracle": "oracle",
    "pymssql": "mssql",
}


def vendor_of(connection: Any) -> str:
    """Return the database by the driver that the connection's class, or what it derives from, belongs to.

    SQLAlchemy's name of it. For a driver that is not known here, or may speak to any database, the driver's own name.

        >>> import sqlite3
        >>> connection = sqlite3.connect(":memory:")
        >>> vendor_of(connection)
        'sqlite'
        >>> connection.close()
    """
    modules = [kind.__module__.partition(".")[0] for kind in type(connection).__mro__]
    return next((_VENDORS[module] for module in modules if module in _VENDORS), modules[0])
