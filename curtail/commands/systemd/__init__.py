"""`curtail controller service` and `curtail agent service`: systemd units."""
