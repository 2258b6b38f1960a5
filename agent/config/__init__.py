"""The whole configuration: read once, frozen, and checked before anything starts.

A value comes from the YAML file or, stronger, from an environment variable; both end as
``Given(value, where)`` under the key path a person would write (``kafka.topic``). From there
on nobody asks where it came from, except an error, which says so on one line:

    where it stands: key path: what was found; what is allowed
"""

from agent.config.loading import PATH_DEFAULT, load
from agent.config.sections import Config
from agent.config.showing import as_yaml, json_schema, masked

__all__ = ["PATH_DEFAULT", "Config", "as_yaml", "json_schema", "load", "masked"]
