"""Mail by SMTP: the standard library's client in a thread of its own, so that a slow server holds nothing up."""

from __future__ import annotations

import smtplib
import socket
import ssl
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr

import anyio
import anyio.to_thread

from gpulockd.alerting.messages import Message, Notice
from gpulockd.daemon.channels.telling import ChannelError, redacted, secret_of, takes
from gpulockd.errors import ConfigError
from gpulockd.settings.alerting import EmailBlock

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class EmailChannel:
    """One server and its recipients."""

    kind = "email"

    def __init__(self, name: str, block: EmailBlock, apart_s: float) -> None:
        """:raises ConfigError: if it cannot send mail as it is"""
        where = f"notify.emails.{name}"
        self.name = name
        self.timeout_s = block.timeout
        self.apart_s = apart_s
        self._block = block
        self._password = secret_of(block.password, block.password_file, where)
        self._limiter = anyio.CapacityLimiter(1)
        _check(block, self._password, where)

    def __repr__(self) -> str:
        return f"<EmailChannel {self.name} {self._block.host}:{self._block.port}>"

    def takes(self, notice: Notice) -> bool:
        """Whether that is for this channel."""
        return takes(self._block, notice, notice.escalated)

    async def send(self, message: Message) -> None:
        """Hand it to the server.

        :raises ChannelError: if the server has not taken it for everybody
        """
        mail = mail_of(message, self._block)
        try:
            await anyio.to_thread.run_sync(self._hand_over, mail, abandon_on_cancel=True, limiter=self._limiter)
        except (OSError, smtplib.SMTPException, ValueError) as broken:
            secrets = (self._password, self._block.username)
            why = redacted(_why(broken), secrets) or type(broken).__name__
            raise ChannelError(f"mail by {self._block.host}:{self._block.port} was not sent: {why}") from None

    def _hand_over(self, mail: EmailMessage) -> None:
        block = self._block
        host = block.host or ""
        name, timeout_s = socket.gethostname(), block.timeout
        if block.tls == "implicit":
            context = ssl.create_default_context()
            server: smtplib.SMTP = smtplib.SMTP_SSL(host, block.port, name, timeout=timeout_s, context=context)
        else:
            server = smtplib.SMTP(host, block.port, name, timeout=timeout_s)
        with server:
            if block.tls == "starttls":
                server.starttls(context=ssl.create_default_context())
            if block.username and self._password:
                server.login(block.username, self._password)
            refused = server.send_message(mail)
        if refused:
            raise smtplib.SMTPRecipientsRefused(refused)


def mail_of(message: Message, block: EmailBlock) -> EmailMessage:
    """Return the mail. Its Message-ID is the same each time this message is sent."""
    mail = EmailMessage()
    mail["Subject"] = message.subject
    mail["From"] = block.sender
    mail["To"] = ", ".join(block.to)
    mail["Date"] = format_datetime(datetime.now(UTC))
    mail["Message-ID"] = f"<{message.delivery}@gpulockd.{_host(block.sender or '')}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail["X-Priority"] = "1" if message.level == "critical" else "3"
    mail.set_content(message.text)
    return mail


def _host(sender: str) -> str:
    return parseaddr(sender)[1].rpartition("@")[2] or "local"


def _why(broken: Exception) -> str:
    if isinstance(broken, smtplib.SMTPResponseException):
        said = broken.smtp_error
        return f"{broken.smtp_code} {said.decode(errors='replace') if isinstance(said, bytes) else said}"
    if isinstance(broken, smtplib.SMTPRecipientsRefused):
        return f"the server refuses {', '.join(broken.recipients)}"
    return str(broken)


def _check(block: EmailBlock, password: str | None, where: str) -> None:
    if not block.host:
        raise ConfigError(f"{where}.host: name the mail server")
    if "@" not in parseaddr(block.sender or "")[1]:
        raise ConfigError(f"{where}.sender: name the address that mail comes from, as gpulockd@example.org")
    wrong = [address for address in block.to if "@" not in parseaddr(address)[1]]
    if wrong or not block.to:
        raise ConfigError(f"{where}.to: {wrong[0] if wrong else 'nobody'} is no address; list at least one")
    if bool(block.username) != bool(password):
        raise ConfigError(f"{where}: username and password go together; set both or none")
    if password and block.tls == "none" and block.host not in LOOPBACK:
        raise ConfigError(f"{where}.tls: 'none' would send the password in the clear; use starttls or implicit")
