"""PyGithub."""

from check import BASE, matrix
from github import Auth, Github


def call(token, repository, retries):
    more = {} if retries else {"retry": None}
    return Github(auth=Auth.Token(token), base_url=BASE, **more).get_repo(f"seks/{repository}").description


matrix(call)
