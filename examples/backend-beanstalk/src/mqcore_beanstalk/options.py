"""What a URL such as `beanstalk://host:11300?connect_timeout=3` may say."""

from pydantic import Field

from mqcore.spi import Options

__all__ = ["BeanstalkOptions"]


class BeanstalkOptions(Options):
    """Options of beanstalk://."""

    connect_timeout: float = Field(default=5.0, gt=0, le=14.0)
    """Seconds until a server that does not answer counts as not there, at the connect and later."""
