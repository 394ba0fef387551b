"""Episodes in HDF5: the recorder's own, robomimic's, LIBERO's and RoboTwin's."""
