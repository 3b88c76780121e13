"""elasticsearch with a user name that is a common word. Prints the cluster's name and its tagline."""

from check import BASE, TOKEN
from elasticsearch import Elasticsearch

info = Elasticsearch(BASE, basic_auth=("elastic", TOKEN)).info()
print(info["cluster_name"], info["tagline"])
