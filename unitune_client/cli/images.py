"""`unitune images`: list and delete uploaded pictures."""

import click

from unitune_client.cli.connection import connection
from unitune_client.cli.display import display
from unitune_client.cli.options import server_options
from unitune_client.cli.tunings import in_local_time, space_to_delete


@click.group("images")
def images_group() -> None:
    """List and delete uploaded pictures.

    \b
    Examples:
      unitune images list --address 127.0.0.1:50051
    """


@images_group.command("list")
@server_options
def list_command(address: str | None, base_model: str | None, as_json: bool) -> None:
    """List the pictures: name, pixels, size of the file, local time of the first upload, and what is wrong with it."""
    with (
        space_to_delete(address),
        display(as_json) as show,
        connection(address, base_model, show.say) as client,
    ):
        for image in client.list_images():
            created = in_local_time(image.create_time) if image.create_time else "-"
            line = f"{image.name}  {image.width}x{image.height}  {image.size_bytes / 1e6:.2f} MB  {created}"
            show.result("  ".join([line, *image.warnings]), kind="image", image=image)


@images_group.command("delete")
@click.argument("name")
@server_options
def delete_command(name: str, address: str | None, base_model: str | None, as_json: bool) -> None:
    """Delete the picture NAME, unless a tuning uses it: then delete that tuning, which deletes its picture, too."""
    with (
        space_to_delete(address),
        display(as_json) as show,
        connection(address, base_model, show.say) as client,
    ):
        client.delete_image(name)
        show.result(f"{name}  deleted", kind="deleted", image=name)
