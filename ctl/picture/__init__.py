"""Pictures of a packet's path, as SVG: what is drawn (model), made of a decision (fill), and how (svg)."""
