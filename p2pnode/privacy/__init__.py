"""Privacy: what was released (mechanism), what it costs (accountant), and the count on disk (ledger)."""
