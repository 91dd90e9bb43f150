"""What `katana_cc.recorder.stage` is made of.  Standard library only: it runs at every link, without site-packages."""
