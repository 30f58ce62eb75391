"""The promises of a handler, by what they are about. `HandlerContract` is all of them."""
