"""Service proxies that are run as their own programs and measured by packets alone: peers of hotplane's modes."""
