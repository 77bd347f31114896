"""What every room may use: errors, files, tables, figures, parallel work. It knows nothing of VTA."""
