"""Users, in a table of the database."""

from ..http.errors import RequestError
from .serialization import dump, load


class UserStore:
    """Finds and saves users."""

    def __init__(self, table):
        self.table = table

    def find(self, user_id):
        row = self.table.get(user_id)
        return load(row) if row else None

    def save(self, user):
        self.table.put(user["id"], dump(user))

    def delete_expired_sessions(self, now):
        """Removes logins that have run out."""
        for user_id, row in list(self.table.items()):
            user = load(row)
            user["logins"] = [login for login in user["logins"] if login["expires"] > now]
            self.save(user)
