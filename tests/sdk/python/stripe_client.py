"""The Stripe SDK, whose retries are opt-in."""

from check import BASE, matrix
from stripe import StripeClient


def call(token, customer, retries):
    client = StripeClient(token, base_addresses={"api": BASE}, max_network_retries=2 if retries else 0)
    return client.v1.customers.retrieve(customer).name


matrix(call)
