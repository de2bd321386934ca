"""How Silobus gets onto machines: container images, and templates for Azure."""
