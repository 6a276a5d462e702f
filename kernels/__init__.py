"""The kernels: functions and ops; modules live in mify.layers."""
