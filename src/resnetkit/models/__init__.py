"""The family: networks as data (`spec`, without torch), their blocks, and the network itself (`resnet`)."""
