"""Run folders, ledgers, Parquet tables and safetensors files, each whole or absent."""
