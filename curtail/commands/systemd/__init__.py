"""`curtail controller service` and `curtail agent service`: installing systemd units."""
